"""What LIBERO costs here, and what its scripted experts can do."""
