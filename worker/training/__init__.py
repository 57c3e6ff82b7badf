"""Fine-tuning of binarized networks: latent weights, gradients of the sign, a teacher.

Nothing here knows of jobs, files or stages, and nothing but torch and numpy is needed: the package
runs on a bare GPU machine.
"""
