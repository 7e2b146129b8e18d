// Places of the page: #/run/VIEW?parameters. A place has everything that it takes to come back to it.

export function read() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?", 2);
  const [run, view] = path.split("/", 2).map(decoded);
  return { run: run || null, view: view || "groups", parameters: new URLSearchParams(query ?? "") };
}

export function to(run, view = "groups", parameters = {}) {
  const kept = Object.entries(parameters).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  const query = new URLSearchParams(kept).toString();
  return `#/${encodeURIComponent(run)}/${view}${query ? `?${query}` : ""}`;
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}
