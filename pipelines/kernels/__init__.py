"""Operations of the networks that one kernel does instead of several, on GPUs with Triton."""
