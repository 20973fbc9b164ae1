"""The whole loop on a real model: tune two adapters, measure, publish under load, roll back, show the figures."""
