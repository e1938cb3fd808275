// The API's description as a page, drawn from openapi.json.

const document_ = await (await fetch("openapi.json")).json();
const place = document.getElementById("docs");
document.getElementById("base").textContent = new URL("v1", location.href).href;

for (const [path, methods] of Object.entries(document_.paths)) {
  for (const [method, operation] of Object.entries(methods)) place.append(describe(path, method, operation));
}

function describe(path, method, operation) {
  const title = make("h2", make("code", make("span", method.toUpperCase(), "method"), path));
  const parts = [title, make("p", operation.description ?? operation.summary)];
  const body = operation.requestBody?.content?.["application/json"]?.schema;
  const fields = body ? Object.entries(resolve(body).properties) : [];
  const parameters = (operation.parameters ?? []).map((one) => [one.name, { ...one.schema, description: one.description }]);
  const rows = [...parameters, ...fields].map(([name, schema]) =>
    make("tr", make("td", make("code", name)), make("td", kind(schema), "quiet"), make("td", schema.description ?? "")),
  );
  if (rows.length) parts.push(make("div", make("table", ...rows), "scroll"));
  const statuses = Object.entries(operation.responses).map(([status, answer]) =>
    make("tr", make("td", make("code", status)), make("td", status === "200" && answer.description === "Successful Response" ? "The answer." : answer.description)),
  );
  const details = make("details", make("summary", "Answers"), make("div", make("table", ...statuses), "scroll"));
  return make("section", ...parts, details);
}

function resolve(schema) {
  return schema.$ref ? document_.components.schemas[schema.$ref.split("/").pop()] : schema;
}

function kind(schema) {
  const all = (schema.anyOf ?? [schema]).filter((one) => one.type !== "null");
  const one = all[0] ?? {};
  if (one.enum) return one.enum.join(" | ");
  if (one.const) return one.const;
  const limits = [one.minimum, one.maximum ?? one.exclusiveMaximum].filter((limit) => limit !== undefined);
  return [one.type === "array" ? "list" : one.type, limits.length === 2 ? `${limits[0]} to ${limits[1]}` : ""].filter(Boolean).join(", ");
}

function make(name, ...children) {
  const element = document.createElement(name);
  const named = typeof children.at(-1) === "string" && children.length > 1 ? children.pop() : "";
  if (["method", "quiet", "scroll"].includes(named)) element.className = named;
  else if (named) children.push(named);
  element.append(...children);
  return element;
}
