"""Environment variables of processes that compute on CPUs; read by glibc, torch and oneDNN when a process starts."""

_ONEDNN = {
    # A kernel of half a megabyte is kept for each shape that it meets, and rows have any length: as many as one forward
    # and backward pass needs.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "32",
}

CPU_ENVIRONMENT = _ONEDNN | {
    # Memory that was used once is kept for the next step: for a new page, a CPU waits longer than for the product
    # that fills it. One arena, because what the backward pass's thread frees the forward pass can use then.
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "2147483647",
    "MALLOC_ARENA_MAX": "1",
}

# Of processes that share a model. FSDP puts layers together and lets them go again, and what lives on (shards of
# gradients) comes to lie between. glibc finds no place for aligned memory where memory of that size was (2.36), so that
# what is kept grows by more than a layer's weights a layer. Here large memory goes back; in huge pages, where the
# system has them, new memory costs little.
SHARED_CPU_ENVIRONMENT = _ONEDNN | {
    "MALLOC_MMAP_THRESHOLD_": "4194304",
    "MALLOC_TRIM_THRESHOLD_": "67108864",
    "MALLOC_ARENA_MAX": "1",
    "THP_MEM_ALLOC_ENABLE": "1",
}


def cpu_environment(processes: int) -> dict[str, str]:
    """Of each of so many processes that share one model."""
    return CPU_ENVIRONMENT if processes == 1 else SHARED_CPU_ENVIRONMENT
