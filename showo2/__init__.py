"""Show-o2 in plain PyTorch: model, data, training, generation and evaluation, without Ray."""
