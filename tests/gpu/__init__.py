"""What a GPU must be seen to compute rightly, as plain torch: without Ray and vLLM, on any machine that has one."""
