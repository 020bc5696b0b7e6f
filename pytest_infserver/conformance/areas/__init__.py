"""The statements, by area: each test is one."""
