"""Tasks of lm-eval from a local hub, compared with lm-eval itself: prompts, responses and all metrics."""
