"""What a run would need and take, from its compiled programs."""
