"""The flow-matching half: manifolds, network, pair batches, integration."""
