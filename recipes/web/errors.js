/** What a user can mend: the page says it in one line, and nothing goes to the console. */
export class CodecError extends Error {}
