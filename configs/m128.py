from configs.base import with_queries

get_config = with_queries(128)
