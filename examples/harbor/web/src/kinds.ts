// The kinds of vessels that the page tells apart: their words and the CSS variable that holds their colour.

export interface Kind {
  id: string;
  label: string;
  plural: string;
}

export const KINDS: readonly Kind[] = [
  { id: "tug", label: "Tug or tow", plural: "Tugs" },
  { id: "passenger", label: "Passenger", plural: "Passenger" },
  { id: "cargo", label: "Cargo", plural: "Cargo" },
  { id: "tanker", label: "Tanker", plural: "Tankers" },
  { id: "pleasure", label: "Sail or pleasure", plural: "Pleasure" },
  { id: "fishing", label: "Fishing", plural: "Fishing" },
  { id: "other", label: "Other", plural: "Other" },
];

const BY_ID = new Map(KINDS.map((kind) => [kind.id, kind]));
const OTHER = KINDS[KINDS.length - 1] as Kind;

export function kindOf(id: string): Kind {
  return BY_ID.get(id) ?? OTHER;
}
