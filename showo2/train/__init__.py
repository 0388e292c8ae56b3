"""The trainer: plain torch, run in one process, under torchrun, or by Ray Train's workers."""
