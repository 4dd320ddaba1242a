// Asks the coordinator. The token is kept for this tab only.

const KEPT_AS = "chroma-sync-token";
const PATIENCE = 15000; // milliseconds; the server gives up sooner

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export const token = {
  get: () => sessionStorage.getItem(KEPT_AS),
  keep: (value) => sessionStorage.setItem(KEPT_AS, value),
  forget: () => sessionStorage.removeItem(KEPT_AS),
};

/** What is there at a path of the API; throws `Refused`, or a TypeError if nobody answers. */
export const read = (path) => ask(path, { method: "GET" });

/** Have something done. */
export const change = (path, body = {}) =>
  ask(path, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
  });

async function ask(path, options) {
  const headers = { ...options.headers };
  if (token.get()) headers.authorization = `Bearer ${token.get()}`;
  const answer = await fetch(`/api/v1/${path}`, {
    ...options,
    headers,
    cache: "no-store",
    credentials: "omit",
    signal: AbortSignal.timeout(PATIENCE),
  });
  const body = await answer.json().catch(() => null);
  if (!answer.ok) throw new Refused(answer.status, body?.error ?? `The answer was ${answer.status}.`);
  return body;
}
