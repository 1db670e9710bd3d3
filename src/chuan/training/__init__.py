"""Pre-training, fine-tuning and adapters: one loop on torch.distributed, its data, its state, and its forecast."""
