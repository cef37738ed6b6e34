"""Claims about quantized models, as checks over any set of scores: findings of a study, or claims of a user's file."""
