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

class Logs {
	constructor(pod, scope) {
		this.pod = pod;
		this.lines = 0;
		this.following = true;
		this.body = h("div.loglines", { tabindex: 0, role: "log", "aria-label": `Log of ${pod.metadata.name}`, "aria-live": "off" });
		this.state = h("span.dim", { role: "status" });
		this.container = h("select", { "aria-label": "Container", onchange: () => this.restart() },
			containersOf(pod).map(({ name, what }) => h("option", { value: name }, what ? `${name} (${what})` : name)));
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
		const restarted = podRestarts(pod) > 0;
		this.element = h("div.logs.filling", null,
			h("div.bar", null, containersOf(pod).length > 1 && this.container, this.followBox,
				check("wrap", true, (on) => this.body.classList.toggle("nowrap", !on)),
				check("times", false, (on) => this.body.classList.toggle("times", on)),
				restarted && check("run before", false, (on) => {
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
		this.restart();
	}

	stop() {
		this.ending?.abort();
		this.ending = undefined;
	}

	restart() {
		this.stop();
		this.body.replaceChildren();
		this.lines = 0;
		this.rest = "";
		this.waiting = [];
		this.newest = undefined;
		this.ending = new AbortController();
		this.#read(this.ending.signal);
	}

	async #read(signal) {
		const { namespace, name, uid } = this.pod.metadata;
		for (;;) {
			this.since = this.newest;
			const query = new URLSearchParams({ container: this.container.value, timestamps: true, follow: !this.previous });
			if (this.previous) query.set("previous", true);
			if (this.since) query.set("sinceTime", this.since);
			else query.set("tailLines", 5000);
			try {
				this.state.textContent = "";
				await follow(`${KIND.Pod.one(namespace, name, "log")}?${query}`, { signal, accept: "*/*" }, (piece) => this.#take(piece));
				this.state.textContent = this.previous ? "the run before this one" : "";
				if (this.previous) return;
				const pod = objects(KIND.Pod).get(namespace, name);
				if (!pod || pod.metadata.uid !== uid) return this.#end("the pod is gone");
				if (pod.status.phase === "Succeeded" || pod.status.phase === "Failed") return this.#end("it has ended");
			} catch (error) {
				if (signal.aborted) return;
				if (error.code === 404) return this.#end("the pod is gone");
				this.state.textContent = error.code ? error.message : "the connection broke; trying again";
			}
			await new Promise((resolve) => setTimeout(resolve, 1000));
			if (signal.aborted) return;
		}
	}

	#end(text) {
		this.state.textContent = text;
	}

	#take(piece) {
		const lines = (this.rest + piece).split("\n");
		this.rest = lines.pop();
		for (const line of lines) {
			const space = line.indexOf(" ");
			const time = line.slice(0, space);
			// After a break the lines of the last second come again.
			if (this.since && time <= this.since) continue;
			this.newest = time;
			this.waiting.push([time, line.slice(space + 1)]);
		}
		this.flush();
	}

	#flush() {
		const words = this.filter.value.toLowerCase();
		for (const [time, text] of this.waiting.splice(0)) {
			let block = this.body.lastChild;
			if (!block || block.childElementCount >= BLOCK) {
				block = h("div.block");
				this.body.append(block);
			}
			const line = h("div.line", null, h("time", null, time.slice(11, 23)), coloured(text.replace(/\r$/, "")));
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
