// Questions to the server. An answer that is an error is thrown with the server's words.

export async function ask(path, parameters = {}) {
  const query = new URLSearchParams();
  for (const [key, value] of Object.entries(parameters)) {
    if (value !== null && value !== undefined && value !== "" && value !== false) query.set(key, value);
  }
  const answer = await fetch(`api/${path}?${query}`, { signal: AbortSignal.timeout(60_000) });
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.error ?? `the server refuses the question (${answer.status})`);
  return body;
}
