// The log of a container, as it is written.

const LINES_MAX = 20000;
const BLOCK = 200;

// Colours of ANSI escape sequences; everything else of them is left out.
function coloured(text) {
	if (!text.includes("\x1b")) return [text];
	const parts = [];
	let [colour, bold, at] = [null, false, 0];
	for (const match of text.matchAll(/\x1b(?:\[([\d;]*)([A-Za-z])|\][^\x07\x1b]*(?:\x07|\x1b\\)|.)/g)) {
		add(text.slice(at, match.index));
		at = match.index + match[0].length;
		if (match[2] !== "m") continue;
		for (const code of (match[1] || "0").split(";").map(Number)) {
			if (code === 0) [colour, bold] = [null, false];
			else if (code === 1 || code === 22) bold = code === 1;
			else if (code >= 30 && code <= 37) colour = code - 30;
			else if (code >= 90 && code <= 97) colour = code - 82;
			else if (code === 39) colour = null;
		}
	}
	add(text.slice(at));
	return parts;
	function add(piece) {
		if (piece) parts.push(colour === null && !bold ? piece : h(bold ? "b" : "span", { style: colour === null ? {} : { color: `var(--ansi${colour})` } }, piece));
	}
}

function containersOf(pod) {
	const of = (list, what) => (pod.spec?.[list] ?? []).map((container) => ({ name: container.name, what }));
	return [...of("containers", ""), ...of("initContainers", "init"), ...of("ephemeralContainers", "debug")];
}

// The log of one container, line by line, until it is stopped. A WebSocket, of which a browser has as many as it
// likes, where it has six ordinary connections.
class LogStream {
	constructor(pod, container, previous, take, tell) {
		Object.assign(this, { pod, container, previous, take, tell });
		this.#run();
	}

	stop() {
		this.stopped = true;
		this.stream?.close();
	}

	async #run() {
		const { namespace, name, uid } = this.pod.metadata;
		for (;;) {
			this.since = this.newest;
			const query = new URLSearchParams({ container: this.container, timestamps: true, follow: !this.previous });
			if (this.previous) query.set("previous", true);
			if (this.since) query.set("sinceTime", this.since);
			else query.set("tailLines", 5000);
			const path = `${KIND.Pod.one(namespace, name, "log")}?${query}`;
			const begun = await this.#follow(path);
			if (this.stopped) return;
			if (this.previous && begun) return this.tell("the run before this one");
			const pod = objects(KIND.Pod).get(namespace, name);
			if (!pod || pod.metadata.uid !== uid) return this.tell("the pod is gone");
			if (begun && (pod.status.phase === "Succeeded" || pod.status.phase === "Failed")) return this.tell("it has ended");
			// Why a connection was refused, only an ordinary answer tells.
			if (!begun) await ask(path.replace("follow=true", "limitBytes=1"), { accept: "*/*" }).then(() => this.tell(""), (error) => this.tell(error.message));
			if (this.previous) return;
			await new Promise((resolve) => setTimeout(resolve, 1000));
			if (this.stopped) return;
		}
	}

	// Resolves when the log ends, to whether it had begun.
	#follow(path) {
		return new Promise((resolve) => {
			const stream = socket(path, ["binary.k8s.io"]);
			stream.binaryType = "arraybuffer";
			this.stream = stream;
			const decoder = new TextDecoder();
			let [begun, rest] = [false, ""];
			stream.onopen = () => {
				begun = true;
				this.tell("");
			};
			stream.onmessage = ({ data }) => {
				const lines = (rest + decoder.decode(data, { stream: true })).split("\n");
				rest = lines.pop();
				for (const line of lines) {
					const space = line.indexOf(" ");
					const time = line.slice(0, space);
					// After a break the lines of the last second come again.
					if (this.since && time <= this.since) continue;
					this.newest = time;
					this.take(time, line.slice(space + 1));
				}
			};
			stream.onclose = () => resolve(begun);
		});
	}
}

class Logs {
	// Of one pod, with a choice of its containers, or of all pods that `pods` finds.
	constructor(object, scope, pods) {
		Object.assign(this, { object, pods, lines: 0, following: true, waiting: [], streams: new Map() });
		this.body = h("div.loglines", { tabindex: 0, role: "log", "aria-label": `Log of ${object.metadata.name}`, "aria-live": "off" });
		this.state = h("span.dim", { role: "status" });
		const containers = pods ? [] : containersOf(object);
		this.container = h("select", { "aria-label": "Container", onchange: () => this.restart() },
			containers.map(({ name, what }) => h("option", { value: name }, what ? `${name} (${what})` : name)));
		this.filter = h("input", { type: "search", placeholder: "Find in log", "aria-label": "Find in log", oninput: () => this.#find(), onkeydown: (event) => {
			if (event.key !== "Escape") return;
			event.stopPropagation();
			this.body.focus();
		} });
		const check = (label, on, change) => h("label.check", null, h("input", { type: "checkbox", checked: on, onchange: (event) => change(event.target.checked) }), label);
		this.followBox = check("follow", true, (on) => {
			this.following = on;
			this.#bottom();
		});
		this.element = h("div.logs.filling", null,
			h("div.bar", null, containers.length > 1 && this.container, this.followBox,
				check("wrap", true, (on) => this.body.classList.toggle("nowrap", !on)),
				check("times", false, (on) => this.body.classList.toggle("times", on)),
				!pods && podRestarts(object) > 0 && check("run before", false, (on) => {
					this.previous = on;
					this.restart();
				}), this.filter, this.state),
			this.body);
		this.body.addEventListener("scroll", () => {
			const below = this.body.scrollHeight - this.body.scrollTop - this.body.clientHeight;
			// Who scrolls up wants to read; who comes back to the end wants to follow.
			this.following = below < 30;
			this.followBox.firstChild.checked = this.following;
		}, { passive: true });
		this.flush = eachFrame(() => this.#flush());
		scope.add(() => this.stop());
		if (pods) objects(KIND.Pod).subscribe(() => this.#join(), scope);
		this.restart();
	}

	stop() {
		for (const stream of this.streams.values()) stream.stop();
		this.streams.clear();
	}

	restart() {
		this.stop();
		this.body.replaceChildren();
		this.lines = 0;
		this.waiting = [];
		// Logs of several containers begin in the order of time, so the first of each are waited for.
		this.held = Boolean(this.pods);
		setTimeout(() => {
			this.held = false;
			this.flush();
		}, 400);
		this.#join();
	}

	// Begins with the logs of pods that are new.
	#join() {
		for (const pod of this.pods?.() ?? [this.object]) {
			const names = this.pods ? pod.spec.containers.map((container) => container.name) : [this.container.value];
			for (const name of names) {
				const key = `${pod.metadata.uid}/${name}`;
				if (this.streams.has(key) || (this.pods && !pod.spec.nodeName)) continue;
				// What tells the pods of one workload from each other is at the end of their names.
				const short = pod.metadata.name.slice(-5) + (names.length > 1 ? ` ${name}` : "");
				const from = this.pods ? [short, [4, 5, 6, 2, 3, 1][this.streams.size % 6]] : undefined;
				this.streams.set(key, new LogStream(pod, name, this.previous, (time, text) => {
					this.waiting.push([time, text, from]);
					this.flush();
				}, (text) => (this.pods ? 0 : (this.state.textContent = text))));
			}
		}
	}

	#flush() {
		if (this.held) return;
		const words = this.filter.value.toLowerCase();
		if (this.pods) this.waiting.sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0));
		for (const [time, text, from] of this.waiting.splice(0)) {
			let block = this.body.lastChild;
			if (!block || block.childElementCount >= BLOCK) {
				block = h("div.block");
				this.body.append(block);
			}
			const line = h("div.line", null, h("time", null, time.slice(11, 23)),
				from && h("span.from", { style: { color: `var(--ansi${from[1]})` } }, from[0]), coloured(text.replace(/\r$/, "")));
			if (words && !text.toLowerCase().includes(words)) line.hidden = true;
			block.append(line);
			this.lines += 1;
		}
		while (this.lines > LINES_MAX && this.body.firstChild !== this.body.lastChild) {
			this.lines -= this.body.firstChild.childElementCount;
			this.body.firstChild.remove();
		}
		this.#bottom();
	}

	#find() {
		const words = this.filter.value.toLowerCase();
		for (const line of this.body.querySelectorAll(".line")) {
			line.hidden = words !== "" && !line.textContent.toLowerCase().includes(words);
		}
		this.#bottom();
	}

	#bottom() {
		if (this.following) this.body.scrollTop = this.body.scrollHeight;
	}
}
