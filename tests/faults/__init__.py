"""What a killed process, a full disk or a reader beside a writer may leave, and what they may not."""
