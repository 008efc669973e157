"""The pieces that methods are made of: views, masks, heads, losses."""
