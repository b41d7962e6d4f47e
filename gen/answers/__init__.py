"""What a language model's answer is: the caption inside it, and what is wrong with it."""
