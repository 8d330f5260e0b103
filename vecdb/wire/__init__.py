"""What travels between clients and servers: the messages, how points and filters become such, and how errors do.

Both sides use this package, and it knows neither of them. Plain functions, safe in any thread.
"""
