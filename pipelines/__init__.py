"""The DAGs: wiring, gate, resources; nothing else."""
