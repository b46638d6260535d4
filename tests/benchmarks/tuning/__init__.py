"""`inrecon bench tuning`: what a search costs, what it finds, and whether what it finds holds elsewhere."""
