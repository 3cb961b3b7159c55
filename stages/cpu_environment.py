"""Environment variables of processes that compute on CPUs; read by glibc and oneDNN when a process starts."""

CPU_ENVIRONMENT = {
    # Memory that was used once is kept for the next step: for a new page, a CPU waits longer than for the product
    # that fills it. One arena, because what the backward pass's thread frees the forward pass can use then.
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "2147483647",
    "MALLOC_ARENA_MAX": "1",
    # oneDNN keeps a kernel of half a megabyte for each shape it meets, and rows have any length: as many as one forward
    # and backward pass needs.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "32",
}
