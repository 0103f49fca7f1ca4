"""What an ablation takes away: components by name, what stands in for them."""
