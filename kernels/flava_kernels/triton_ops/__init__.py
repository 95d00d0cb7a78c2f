"""Device kernels: the only modules that import triton, imported only when an operator has chosen them."""
