"""Order, mixture, packing and loading: the data stream of training."""
