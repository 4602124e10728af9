"""What worker processes count and trace, and who is told: OTLP, Prometheus."""
