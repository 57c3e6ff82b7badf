"""What serving and training share: architectures, binary layers, the artifact and its runtimes."""
