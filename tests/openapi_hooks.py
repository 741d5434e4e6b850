"""What schemathesis should know of the API: a watch is answered until it is told to end."""

import schemathesis


@schemathesis.hook
def map_query(context, query):
    if query and "watch" in query:
        query["timeoutSeconds"] = "1"
    return query
