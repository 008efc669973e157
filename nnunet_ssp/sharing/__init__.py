"""Pretrainings on their way to others: export with a card, and import."""
