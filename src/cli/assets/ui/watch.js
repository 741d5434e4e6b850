// Objects of one kind, kept as the server has them: a list, then a watch from there. When the watch breaks it
// goes on from the last version seen; when the server no longer has that version, or is another one, the list
// is made anew.

const WAIT_MIN = 300;
const WAIT_MAX = 5000;

class Objects {
	// With a name: that one object alone.
	constructor(kind, namespace, name) {
		this.kind = kind;
		this.path = kind.list(namespace);
		this.only = name ? `fieldSelector=${encodeURIComponent(`metadata.name=${name}`)}` : "";
		this.items = new Map();
		this.state = "idle"; // loading, live, broken
		this.error = undefined;
		this.listeners = new Set();
		this.lists = 0;
		this.tell = eachFrame(() => {
			for (const listener of [...this.listeners]) listener(this);
		});
	}

	// Calls `listener` after changes, until `scope` ends. The first call begins the watch.
	subscribe(listener, scope) {
		this.listeners.add(listener);
		scope?.add(() => this.listeners.delete(listener));
		this.start();
		return this;
	}

	stop() {
		this.stopped = true;
		this.stream?.close();
	}

	start() {
		if (this.state === "idle") this.#run();
		return this;
	}

	get all() {
		return [...this.items.values()];
	}

	get(namespace, name) {
		return this.items.get(namespace ? `${namespace}/${name}` : name);
	}

	#set(state, error) {
		this.state = state;
		this.error = error;
		this.tell();
		linkChanged();
	}

	async #run() {
		this.#set("loading");
		let version;
		let wait = WAIT_MIN;
		while (!this.stopped) {
			try {
				if (version === undefined) version = await this.list();
				this.#set("live");
				const begun = performance.now();
				version = await this.watch(version, () => (wait = WAIT_MIN));
				// A server ends watches after a while; one that ends them at once is not asked again at once.
				if (version !== undefined && performance.now() - begun > WAIT_MAX) continue;
			} catch (error) {
				if (this.stopped) return;
				version = undefined;
				this.#set("broken", error);
				// Not allowed, or not known here: asking again soon changes nothing.
				if (error.code === 403 || error.code === 404) wait = 30000;
			}
			await new Promise((resolve) => setTimeout(resolve, wait * (0.7 + 0.6 * Math.random())));
			wait = Math.min(wait * 2, WAIT_MAX);
		}
	}

	async list() {
		const list = await askJson(`${this.path}?${this.only}`);
		this.lists += 1;
		const items = new Map();
		for (const item of list.items ?? []) {
			this.#name(item);
			items.set(keyOf(item), item);
		}
		this.items = items;
		this.tell();
		return list.metadata.resourceVersion;
	}

	// Items of lists do not say what they are.
	#name(item) {
		item.kind ??= this.kind.kind;
		item.apiVersion ??= this.kind.apiVersion;
		if (item.metadata) delete item.metadata.managedFields;
	}

	// Follows changes. Resolves to the version to go on from, or to nothing when the list must be made anew.
	watch(version, alive) {
		return new Promise((resolve) => {
			const stream = socket(`${this.path}?watch=true&allowWatchBookmarks=true&resourceVersion=${version}&${this.only}`);
			this.stream = stream;
			let opened = false;
			stream.onopen = () => (opened = true);
			stream.onmessage = ({ data }) => {
				const { type, object } = JSON.parse(data);
				if (type === "ERROR") {
					version = undefined;
					stream.close();
					return;
				}
				alive();
				version = object.metadata.resourceVersion;
				if (type === "BOOKMARK") return;
				this.#name(object);
				if (type === "DELETED") this.items.delete(keyOf(object));
				else this.items.set(keyOf(object), object);
				this.tell();
			};
			stream.onclose = ({ wasClean }) => {
				// A refusal looks like a connection that never was; the list then tells the reason.
				if (!opened || !wasClean) {
					this.#set("broken", new ApiError(0, "the connection broke"));
					version = undefined;
				}
				resolve(version);
			};
		});
	}
}

// The rows of the server's own table for a kind, kept in the same way. What kind of answer is wanted cannot be
// said when a WebSocket is asked for, so this watch is an ordinary answer that goes on.
class Rows extends Objects {
	accept = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
	columns = [];

	async list() {
		const { columnDefinitions, rows, metadata } = await askJson(this.path, { accept: this.accept });
		this.lists += 1;
		this.columns = columnDefinitions;
		this.items = new Map((rows ?? []).map((row) => [keyOf(row.object), row]));
		this.tell();
		return metadata.resourceVersion;
	}

	async watch(version, alive) {
		this.ending = new AbortController();
		let rest = "";
		await follow(`${this.path}?watch=true&allowWatchBookmarks=true&resourceVersion=${version}`, { accept: this.accept, signal: this.ending.signal }, (piece) => {
			const lines = (rest + piece).split("\n");
			rest = lines.pop();
			for (const { type, object } of lines.filter(Boolean).map((line) => JSON.parse(line))) {
				if (type === "ERROR" || version === undefined) {
					version = undefined;
					continue;
				}
				alive();
				version = object.metadata?.resourceVersion || version;
				for (const row of type === "BOOKMARK" ? [] : object.rows ?? []) {
					if (type === "DELETED") this.items.delete(keyOf(row.object));
					else this.items.set(keyOf(row.object), row);
				}
				this.tell();
			}
		});
		return version;
	}

	stop() {
		super.stop();
		this.ending?.abort();
	}
}

const caches = new Map();

// The objects of a kind, shared by everybody on the page.
function objects(kind) {
	if (!caches.has(kind.id)) caches.set(kind.id, new Objects(kind));
	return caches.get(kind.id);
}

const linkListeners = new Set();
const linkChanged = eachFrame(() => {
	const states = [...caches.values()];
	const broken = states.filter((cache) => cache.state === "broken" && ![403, 404].includes(cache.error?.code));
	const loading = states.some((cache) => cache.state === "loading");
	const state = broken.length ? "broken" : loading ? "loading" : "live";
	for (const listener of linkListeners) listener(state, broken[0]?.error);
});
