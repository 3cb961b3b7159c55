"""The model that is trained, from outside: layers, adapters, sharding; its checkpoints and its export."""
