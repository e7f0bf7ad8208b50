"""What is measured, and how: probes, metrics, votes, features, published figures."""
