-- The first version wrote its migrations down in a list that knew no phases. It was left for that version to start with.

drop table if exists holdfast_migrations;
