"""Continual-learning methods: what is done against forgetting, beside the update itself."""
