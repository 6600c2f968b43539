"""Quality control: findings, pictures, and the report of all cases."""
