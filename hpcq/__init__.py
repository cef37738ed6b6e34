"""hpcq: which quantization of which model can be trusted for which tasks, and what it costs, on a Slurm cluster."""

__version__ = "0.1.0"
