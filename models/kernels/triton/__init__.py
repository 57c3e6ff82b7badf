"""Products of packed bits on a GPU, in Triton: `operators.launch_product`, and what goes with it.

Weights stay packed in the GPU's memory and become numbers in registers, on their way to the tensor
cores. On tensors in the CPU's memory every kernel runs in Triton's interpreter, which is how they
are tested where there is no GPU.

The modules that define kernels need Triton; `configurations`, `word_order` and `borders` do not.
"""
