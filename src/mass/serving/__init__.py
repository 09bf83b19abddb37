"""HTTP requests in OpenAI's form -> answers by weights that practised on them (`mass serve`).

`body` and `protocol` read a request, `models` finds what it names, `service` answers it, `replies` writes the answer
down, and `app` puts these behind routes. Needs the extra `serve`.
"""
