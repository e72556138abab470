"""Images of users: folders, tables, archives and the hub, in the forms that people make."""
