"""Certified margins by auto_LiRPA (CROWN, IBP)."""
