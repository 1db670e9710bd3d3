"""Few rows through a model on a GPU: Triton kernels and captured graphs. Nothing outside opens it but `build.py`."""
