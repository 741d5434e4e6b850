// Speaking with the API server. The page's own server adds the user's credentials.

class ApiError extends Error {
	constructor(code, message, reason) {
		super(message);
		this.code = code;
		this.reason = reason;
	}
}

async function ask(path, { method = "GET", body, type, accept = "application/json", signal } = {}) {
	const headers = { accept };
	if (body !== undefined) headers["content-type"] = type ?? "application/json";
	const data = body === undefined || typeof body === "string" ? body : JSON.stringify(body);
	let answer;
	try {
		answer = await fetch(path, { method, headers, body: data, signal, cache: "no-store" });
	} catch (error) {
		if (error.name === "AbortError") throw error;
		throw new ApiError(0, "rootlet ui does not answer: it was ended, or this machine slept");
	}
	if (answer.ok) return answer;
	const text = await answer.text();
	try {
		const status = JSON.parse(text);
		throw new ApiError(answer.status, status.message ?? text, status.reason);
	} catch (error) {
		if (error instanceof ApiError) throw error;
		throw new ApiError(answer.status, text.trim() || answer.statusText);
	}
}

const askJson = async (path, options) => (await ask(path, options)).json();

function socket(path, protocols) {
	return new WebSocket(`ws://${location.host}${path}`, protocols);
}

// Hands over each piece of an answer that goes on, as text.
async function follow(path, { signal, accept } = {}, piece) {
	const answer = await ask(path, { signal, accept });
	const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
	for (;;) {
		const { done, value } = await reader.read();
		if (done) return;
		piece(value);
	}
}

// A kind of object: where it is, and what it is called.
class Kind {
	constructor(group, version, plural, kind, namespaced, more = {}) {
		Object.assign(this, { group, version, plural, kind, namespaced, verbs: [], short: [], ...more });
		this.base = group ? `/apis/${group}/${version}` : `/api/${version}`;
		this.id = group ? `${plural}.${group}` : plural;
	}
	get apiVersion() {
		return this.group ? `${this.group}/${this.version}` : this.version;
	}
	list(namespace) {
		return this.namespaced && namespace ? `${this.base}/namespaces/${namespace}/${this.plural}` : `${this.base}/${this.plural}`;
	}
	one(namespace, name, subresource) {
		const path = `${this.list(namespace)}/${encodeURIComponent(name)}`;
		return subresource ? `${path}/${subresource}` : path;
	}
}

const KIND = {};
for (const [group, version, plural, kind, namespaced] of [
	["", "v1", "nodes", "Node", false],
	["", "v1", "namespaces", "Namespace", false],
	["", "v1", "pods", "Pod", true],
	["", "v1", "events", "Event", true],
	["", "v1", "services", "Service", true],
	["", "v1", "configmaps", "ConfigMap", true],
	["apps", "v1", "deployments", "Deployment", true],
	["apps", "v1", "statefulsets", "StatefulSet", true],
	["apps", "v1", "daemonsets", "DaemonSet", true],
	["apps", "v1", "replicasets", "ReplicaSet", true],
	["batch", "v1", "jobs", "Job", true],
	["batch", "v1", "cronjobs", "CronJob", true],
	["networking.k8s.io", "v1", "ingresses", "Ingress", true],
	["discovery.k8s.io", "v1", "endpointslices", "EndpointSlice", true],
]) {
	KIND[kind] = new Kind(group, version, plural, kind, namespaced);
}

// Every kind that the server has, by aggregated discovery; the preferred version of each.
let discovered;
function discover() {
	discovered ??= (async () => {
		const accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
		const [core, groups] = await Promise.all([askJson("/api", { accept }), askJson("/apis", { accept })]);
		const found = new Map();
		for (const group of [...core.items, ...groups.items]) {
			for (const { version, resources } of group.versions) {
				for (const resource of resources ?? []) {
					const kind = new Kind(group.metadata?.name ?? "", version, resource.resource, resource.responseKind.kind,
						resource.scope === "Namespaced", { verbs: resource.verbs ?? [], short: resource.shortNames ?? [],
							subresources: (resource.subresources ?? []).map((s) => s.subresource) });
					if (kind.verbs.includes("list") && !found.has(kind.id)) found.set(kind.id, kind);
				}
			}
		}
		return found;
	})();
	discovered.catch(() => (discovered = undefined));
	return discovered;
}
