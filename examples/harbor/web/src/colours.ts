// The colours that an area can have, by the names that the service knows; theme.css holds a shade of each per theme.

export const AREA_COLOURS = ["teal", "blue", "violet", "magenta", "red", "amber", "green", "slate"] as const;
