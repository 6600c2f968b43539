"""What people look at: findings, pictures, and the report of all cases."""
