"""The model: a backbone with a growing head, as it travels to the Hub."""
