// A terminal as programs know it from xterm: what they write becomes rows of cells, what is typed becomes
// what they expect. Sources: ECMA-48, the VT220 manual, and xterm's "Control Sequences".

const SCROLLBACK = 3000;
const PLAIN_STYLE = Object.freeze({ fg: null, bg: null, flags: 0 });
const BOLD = 1, DIM = 2, ITALIC = 4, UNDERLINE = 8, INVERSE = 16, HIDDEN = 32, STRIKE = 64;
const FLAGS = { 1: BOLD, 2: DIM, 3: ITALIC, 4: UNDERLINE, 5: 0, 7: INVERSE, 8: HIDDEN, 9: STRIKE };
const FLAGS_OFF = { 22: BOLD | DIM, 23: ITALIC, 24: UNDERLINE, 25: 0, 27: INVERSE, 28: HIDDEN, 29: STRIKE };
const LINE_DRAWING = Object.fromEntries([..."`abcdefghijklmnopqrstuvwxyz{|}~"].map((from, index) => [from, [..."◆▒␉␌␍␊°±␤␋┘┐┌└┼⎺⎻─⎼⎽├┤┴┬│≤≥π≠£·"][index]]));
const WIDE = /[\u1100-\u115f\u2e80-\u303e\u3041-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\uffe0-\uffe6\u{1f300}-\u{1f64f}\u{1f900}-\u{1f9ff}\u{20000}-\u{3fffd}]/u;
const COMBINING = /^[\p{Mn}\p{Me}\u200b-\u200d\ufe00-\ufe0f]/u;

class Terminal {
	// `reply` takes what the terminal itself answers; `changed` is called after every write.
	constructor(columns, rows, { reply = () => {}, changed = () => {}, titled = () => {} } = {}) {
		Object.assign(this, { columns, rows, reply, changed, titled });
		this.scrollback = [];
		this.reset();
	}

	reset() {
		this.style = PLAIN_STYLE;
		this.x = 0;
		this.y = 0;
		this.top = 0;
		this.bottom = this.rows - 1;
		this.wrapPending = false;
		this.modes = { wrap: true, origin: false, insert: false, cursor: true, applicationCursor: false, applicationKeypad: false, paste: false, newline: false, mouse: 0, sgrMouse: false };
		this.charsets = ["B", "B"];
		this.charset = 0;
		this.saved = undefined;
		this.main = undefined;
		this.tabs = new Set();
		for (let at = 8; at < 1000; at += 8) this.tabs.add(at);
		this.screen = Array.from({ length: this.rows }, () => this.#blank());
		this.state = "ground";
		this.last = "";
	}

	get alternate() {
		return this.main !== undefined;
	}

	#blank() {
		// Erased cells keep the background, as xterm's do.
		const style = this.style.bg === null ? PLAIN_STYLE : Object.freeze({ ...PLAIN_STYLE, bg: this.style.bg });
		return { cells: Array.from({ length: this.columns }, () => [" ", style]), version: Terminal.version++ };
	}

	#touch(y) {
		this.screen[y].version = Terminal.version++;
	}

	resize(columns, rows) {
		if (columns === this.columns && rows === this.rows) return;
		const fit = (screen, isMain) => {
			for (const line of screen) {
				line.version = Terminal.version++;
				while (line.cells.length < columns) line.cells.push([" ", PLAIN_STYLE]);
				line.cells.length = columns;
			}
			while (screen.length > rows) {
				// Empty lines below the cursor go first, then the uppermost into the scrollback.
				if (screen.length - 1 > this.y && screen.at(-1).cells.every(([char]) => char === " ")) screen.pop();
				else {
					const line = screen.shift();
					if (isMain) this.#keep(line);
					this.y = Math.max(0, this.y - 1);
				}
			}
			this.columns = columns;
			while (screen.length < rows) screen.push(this.#blank());
		};
		fit(this.screen, !this.main);
		if (this.main) fit(this.main.screen, true);
		this.rows = rows;
		this.top = 0;
		this.bottom = rows - 1;
		this.x = Math.min(this.x, columns - 1);
		this.y = Math.min(this.y, rows - 1);
		this.wrapPending = false;
		this.changed();
	}

	#keep(line) {
		this.scrollback.push(line);
		this.dropped = (this.dropped ?? 0);
		if (this.scrollback.length > SCROLLBACK) {
			this.scrollback.shift();
			this.dropped += 1;
		}
	}

	write(text) {
		for (const char of text) this.#take(char);
		this.changed();
	}

	#take(char) {
		const code = char.codePointAt(0);
		if (this.state === "string") {
			// An operating system command, or another string, up to BEL or ST.
			if (code === 0x07 || code === 0x9c) this.#endString();
			else if (code === 0x1b) this.state = "stringEscape";
			else if (this.text.length < 4096) this.text += char;
			return;
		}
		if (this.state === "stringEscape") {
			this.#endString();
			if (char === "\\") return;
			this.state = "escape";
		}
		if (code < 0x20 || code === 0x7f) return this.#control(code);
		switch (this.state) {
			case "ground":
				return this.#print(char);
			case "escape":
				return this.#escape(char);
			case "charset":
				this.charsets[this.slot] = char;
				this.state = "ground";
				return;
			case "hash":
				if (char === "8") for (let y = 0; y < this.rows; y += 1) for (let x = 0; x < this.columns; x += 1) this.#put(x, y, "E");
				this.state = "ground";
				return;
			case "skip":
				this.state = "ground";
				return;
			case "csi":
				if (code >= 0x40) {
					this.state = "ground";
					this.#sequence(char);
				} else if (this.text.length < 256) this.text += char;
		}
	}

	#control(code) {
		switch (code) {
			case 0x08:
				this.x = Math.max(0, this.x - 1);
				this.wrapPending = false;
				return;
			case 0x09:
				do this.x += 1;
				while (this.x < this.columns - 1 && !this.tabs.has(this.x));
				this.x = Math.min(this.x, this.columns - 1);
				return;
			case 0x0a: case 0x0b: case 0x0c:
				this.#index();
				if (this.modes.newline) this.x = 0;
				this.wrapPending = false;
				return;
			case 0x0d:
				this.x = 0;
				this.wrapPending = false;
				return;
			case 0x0e:
				this.charset = 1;
				return;
			case 0x0f:
				this.charset = 0;
				return;
			case 0x18: case 0x1a:
				this.state = "ground";
				return;
			case 0x1b:
				this.state = "escape";
				this.text = "";
		}
	}

	#escape(char) {
		this.state = "ground";
		switch (char) {
			case "[":
				this.state = "csi";
				this.text = "";
				return;
			case "]": case "P": case "X": case "^": case "_":
				this.state = "string";
				this.kind = char;
				this.text = "";
				return;
			case "(": case ")":
				this.state = "charset";
				this.slot = char === "(" ? 0 : 1;
				return;
			case "*": case "+": case "-": case ".": case "/": case " ": case "%":
				this.state = "skip";
				return;
			case "#":
				this.state = "hash";
				return;
			case "7":
				return this.#save();
			case "8":
				return this.#restore();
			case "D":
				return this.#index();
			case "E":
				this.x = 0;
				return this.#index();
			case "M":
				if (this.y === this.top) this.#scroll(-1);
				else this.y = Math.max(0, this.y - 1);
				return;
			case "H":
				this.tabs.add(this.x);
				return;
			case "Z":
				return this.reply("\x1b[?62;22c");
			case "=": case ">":
				this.modes.applicationKeypad = char === "=";
				return;
			case "c":
				this.reset();
		}
	}

	#endString() {
		this.state = "ground";
		const match = this.kind === "]" && /^[02];([^]*)$/.exec(this.text);
		if (match) this.titled(match[1]);
	}

	#print(char) {
		if (this.charsets[this.charset] === "0") char = LINE_DRAWING[char] ?? char;
		if (char > "\u02ff" && COMBINING.test(char)) {
			const x = this.wrapPending ? this.x : Math.max(0, this.x - 1);
			const cell = this.screen[this.y].cells[x];
			this.#put(x, this.y, cell[0] + char, cell[1]);
			return;
		}
		const width = char > "\u10ff" && WIDE.test(char) ? 2 : 1;
		if (this.wrapPending || (width === 2 && this.x === this.columns - 1 && this.modes.wrap)) {
			this.x = 0;
			this.#index();
			this.wrapPending = false;
		}
		const { cells } = this.screen[this.y];
		if (this.modes.insert) {
			cells.splice(this.x, 0, ...Array.from({ length: width }, () => [" ", PLAIN_STYLE]));
			cells.length = this.columns;
		}
		this.#put(this.x, this.y, char);
		if (width === 2 && this.x + 1 < this.columns) this.#put(this.x + 1, this.y, "");
		this.last = char;
		if (this.x + width >= this.columns) {
			this.x = this.columns - 1;
			this.wrapPending = this.modes.wrap;
		} else this.x += width;
	}

	#put(x, y, char, style = this.style) {
		const { cells } = this.screen[y];
		// Half of a wide character does not stay.
		if (cells[x]?.[0] === "" && x > 0 && char !== "") cells[x - 1] = [" ", cells[x - 1][1]];
		if (char !== "" && cells[x + 1]?.[0] === "") cells[x + 1] = [" ", cells[x + 1][1]];
		cells[x] = [char, style];
		this.#touch(y);
	}

	#index() {
		if (this.y === this.bottom) this.#scroll(1);
		else if (this.y < this.rows - 1) this.y += 1;
	}

	// Moves the lines of the scroll region up, or down when `by` is negative.
	#scroll(by, top = this.top) {
		const count = Math.min(Math.abs(by), this.bottom - top + 1);
		for (let done = 0; done < count; done += 1) {
			if (by > 0) {
				const [line] = this.screen.splice(top, 1);
				if (top === 0 && !this.main) this.#keep(line);
				this.screen.splice(this.bottom, 0, this.#blank());
			} else {
				this.screen.splice(this.bottom, 1);
				this.screen.splice(top, 0, this.#blank());
			}
		}
	}

	#save() {
		this.saved = { x: this.x, y: this.y, style: this.style, charsets: [...this.charsets], charset: this.charset, origin: this.modes.origin, wrapPending: this.wrapPending };
	}

	#restore() {
		const { origin = false, ...saved } = this.saved ?? { x: 0, y: 0, style: PLAIN_STYLE, charsets: ["B", "B"], charset: 0, wrapPending: false };
		Object.assign(this, saved, { charsets: [...saved.charsets] });
		this.modes.origin = origin;
		this.x = Math.min(this.x, this.columns - 1);
		this.y = Math.min(this.y, this.rows - 1);
	}

	#moveTo(x, y) {
		const [top, bottom] = this.modes.origin ? [this.top, this.bottom] : [0, this.rows - 1];
		this.x = Math.max(0, Math.min(this.columns - 1, x));
		this.y = Math.max(top, Math.min(bottom, y));
		this.wrapPending = false;
	}

	#erase(from, to, y) {
		const blank = this.#blank().cells[0];
		const { cells } = this.screen[y];
		if (cells[from]?.[0] === "" && from > 0) cells[from - 1] = [" ", cells[from - 1][1]];
		if (cells[to]?.[0] === "") cells[to] = [" ", cells[to][1]];
		for (let x = from; x < to; x += 1) cells[x] = blank;
		this.#touch(y);
	}

	#sequence(final) {
		const mark = /^[<=>?]/.exec(this.text)?.[0] ?? "";
		const middle = /[ -/]+$/.exec(this.text)?.[0] ?? "";
		const list = this.text.slice(mark.length, this.text.length - middle.length).split(";");
		const value = (index, otherwise) => Number.parseInt(list[index], 10) || otherwise;
		const n = value(0, 1);
		if (middle) {
			if (middle === "!" && final === "p") this.#softReset();
			return;
		}
		if (mark === "?" && (final === "h" || final === "l")) {
			for (let index = 0; index < list.length; index += 1) this.#privateMode(value(index, 0), final === "h");
			return;
		}
		if (mark) {
			if (mark === ">" && final === "c") this.reply("\x1b[>41;1;0c");
			else if (mark === "?" && final === "n" && n === 6) this.reply(`\x1b[?${this.y + 1};${this.x + 1}R`);
			return;
		}
		const { cells } = this.screen[this.y];
		switch (final) {
			case "A": {
				const top = this.y >= this.top ? this.top : 0;
				this.y = Math.max(top, this.y - n);
				this.wrapPending = false;
				return;
			}
			case "B": case "e": {
				const bottom = this.y <= this.bottom ? this.bottom : this.rows - 1;
				this.y = Math.min(bottom, this.y + n);
				this.wrapPending = false;
				return;
			}
			case "C": case "a":
				this.x = Math.min(this.columns - 1, this.x + n);
				this.wrapPending = false;
				return;
			case "D":
				this.x = Math.max(0, this.x - n);
				this.wrapPending = false;
				return;
			case "E":
				this.x = 0;
				this.y = Math.min(this.rows - 1, this.y + n);
				return;
			case "F":
				this.x = 0;
				this.y = Math.max(0, this.y - n);
				return;
			case "G": case "`":
				this.x = Math.min(this.columns, n) - 1;
				this.wrapPending = false;
				return;
			case "H": case "f":
				return this.#moveTo(value(1, 1) - 1, n - 1 + (this.modes.origin ? this.top : 0));
			case "I":
				for (let done = 0; done < n; done += 1) this.#control(0x09);
				return;
			case "Z":
				for (let done = 0; done < n; done += 1) {
					do this.x = Math.max(0, this.x - 1);
					while (this.x > 0 && !this.tabs.has(this.x));
				}
				return;
			case "J":
				return this.#eraseScreen(value(0, 0));
			case "K": {
				const which = value(0, 0);
				this.wrapPending = false;
				return this.#erase(which === 0 ? this.x : 0, which === 1 ? this.x + 1 : this.columns, this.y);
			}
			case "L": case "M":
				if (this.y < this.top || this.y > this.bottom) return;
				this.x = 0;
				if (final === "L") return this.#scroll(-n, this.y);
				for (let done = 0; done < Math.min(n, this.bottom - this.y + 1); done += 1) {
					this.screen.splice(this.y, 1);
					this.screen.splice(this.bottom, 0, this.#blank());
				}
				return;
			case "@":
				cells.splice(this.x, 0, ...this.#blank().cells.slice(0, Math.min(n, this.columns - this.x)));
				cells.length = this.columns;
				return this.#touch(this.y);
			case "P":
				cells.splice(this.x, n);
				while (cells.length < this.columns) cells.push(this.#blank().cells[0]);
				return this.#touch(this.y);
			case "X":
				return this.#erase(this.x, Math.min(this.columns, this.x + n), this.y);
			case "S":
				return this.#scroll(n);
			case "T":
				return this.#scroll(-n);
			case "b":
				for (let done = 0; done < Math.min(n, 10000) && this.last; done += 1) this.#print(this.last);
				return;
			case "c":
				return this.reply("\x1b[?62;22c");
			case "d":
				return this.#moveTo(this.x, n - 1 + (this.modes.origin ? this.top : 0));
			case "g":
				if (value(0, 0) === 3) this.tabs.clear();
				else this.tabs.delete(this.x);
				return;
			case "h": case "l":
				if (n === 4) this.modes.insert = final === "h";
				else if (n === 20) this.modes.newline = final === "h";
				return;
			case "m":
				return this.#rendition(list);
			case "n":
				if (n === 5) this.reply("\x1b[0n");
				else if (n === 6) this.reply(`\x1b[${this.y + 1 - (this.modes.origin ? this.top : 0)};${this.x + 1}R`);
				return;
			case "r": {
				const top = n - 1;
				const bottom = Math.min(this.rows, value(1, this.rows)) - 1;
				if (top >= bottom) return;
				this.top = top;
				this.bottom = bottom;
				return this.#moveTo(0, this.modes.origin ? top : 0);
			}
			case "s":
				return this.#save();
			case "u":
				return this.#restore();
			case "t":
				if (n === 18) this.reply(`\x1b[8;${this.rows};${this.columns}t`);
		}
	}

	#eraseScreen(which) {
		this.wrapPending = false;
		if (which === 3) {
			this.dropped = (this.dropped ?? 0) + this.scrollback.length;
			this.scrollback = [];
			return;
		}
		if (which === 2 && !this.main) {
			// What was to be read can still be, above.
			const used = this.screen.findLastIndex((line) => line.cells.some(([char]) => char !== " "));
			for (const line of this.screen.slice(0, used + 1)) this.#keep({ cells: [...line.cells], version: line.version });
		}
		const [from, to] = { 0: [this.y + 1, this.rows], 1: [0, this.y] }[which] ?? [0, this.rows];
		if (which === 0) this.#erase(this.x, this.columns, this.y);
		if (which === 1) this.#erase(0, this.x + 1, this.y);
		for (let y = from; y < to; y += 1) this.screen[y] = this.#blank();
	}

	#softReset() {
		Object.assign(this.modes, { wrap: true, origin: false, insert: false, cursor: true, applicationCursor: false, applicationKeypad: false });
		this.style = PLAIN_STYLE;
		this.top = 0;
		this.bottom = this.rows - 1;
		this.charsets = ["B", "B"];
		this.charset = 0;
	}

	#privateMode(mode, on) {
		switch (mode) {
			case 1:
				this.modes.applicationCursor = on;
				return;
			case 6:
				this.modes.origin = on;
				return this.#moveTo(0, on ? this.top : 0);
			case 7:
				this.modes.wrap = on;
				return;
			case 25:
				this.modes.cursor = on;
				return;
			case 1000: case 1002: case 1003:
				this.modes.mouse = on ? mode : 0;
				return;
			case 1006:
				this.modes.sgrMouse = on;
				return;
			case 1048:
				return on ? this.#save() : this.#restore();
			case 47: case 1047: case 1049:
				return this.#alternateScreen(mode, on);
			case 2004:
				this.modes.paste = on;
		}
	}

	#alternateScreen(mode, on) {
		if (on === this.alternate) return;
		if (on) {
			if (mode === 1049) this.#save();
			this.main = { screen: this.screen, saved: this.saved };
			this.screen = Array.from({ length: this.rows }, () => this.#blank());
		} else {
			this.screen = this.main.screen;
			this.saved = this.main.saved;
			this.main = undefined;
			if (mode === 1049) this.#restore();
		}
		for (let y = 0; y < this.rows; y += 1) this.#touch(y);
	}

	#rendition(list) {
		let { fg, bg, flags } = this.style;
		// Colours come as 38;5;N, 38;2;R;G;B, or the same with colons.
		const codes = list.flatMap((part) => (part.includes(":") ? [part.split(":").map(Number)] : [Number(part) || 0]));
		for (let index = 0; index < codes.length; index += 1) {
			let code = codes[index];
			if (Array.isArray(code)) {
				const [what, how, ...rest] = code;
				if (what === 4) flags = how === 0 ? flags & ~UNDERLINE : flags | UNDERLINE;
				const colour = how === 5 ? rest[0] : how === 2 ? hex(rest.slice(-3)) : null;
				if (what === 38) fg = colour;
				if (what === 48) bg = colour;
				continue;
			}
			if (code === 0) [fg, bg, flags] = [null, null, 0];
			else if (code in FLAGS) flags |= FLAGS[code];
			else if (code in FLAGS_OFF) flags &= ~FLAGS_OFF[code];
			else if (code >= 30 && code <= 37) fg = code - 30;
			else if (code >= 40 && code <= 47) bg = code - 40;
			else if (code >= 90 && code <= 97) fg = code - 82;
			else if (code >= 100 && code <= 107) bg = code - 92;
			else if (code === 39) fg = null;
			else if (code === 49) bg = null;
			else if (code === 38 || code === 48) {
				let colour = null;
				if (codes[index + 1] === 5) {
					colour = codes[index + 2] ?? null;
					index += 2;
				} else if (codes[index + 1] === 2) {
					colour = hex(codes.slice(index + 2, index + 5));
					index += 4;
				}
				if (code === 38) fg = colour;
				else bg = colour;
			}
		}
		this.style = fg === null && bg === null && flags === 0 ? PLAIN_STYLE : Object.freeze({ fg, bg, flags });
	}

	// The text of a line, without what is empty at its end.
	static text(line) {
		return line.cells.map(([char]) => char).join("").trimEnd();
	}

	// What a key is to the program; nothing when it is the browser's.
	key({ key, ctrlKey, altKey, metaKey, shiftKey }) {
		if (metaKey) return undefined;
		const more = 1 + (shiftKey ? 1 : 0) + (altKey ? 2 : 0) + (ctrlKey ? 4 : 0);
		const letter = { ArrowUp: "A", ArrowDown: "B", ArrowRight: "C", ArrowLeft: "D", Home: "H", End: "F", F1: "P", F2: "Q", F3: "R", F4: "S" }[key];
		if (letter) {
			if (more > 1) return `\x1b[1;${more}${letter}`;
			return `\x1b${this.modes.applicationCursor || /^F/.test(key) ? "O" : "["}${letter}`;
		}
		const number = { Insert: 2, Delete: 3, PageUp: 5, PageDown: 6, F5: 15, F6: 17, F7: 18, F8: 19, F9: 20, F10: 21, F11: 23, F12: 24 }[key];
		if (number) return more > 1 ? `\x1b[${number};${more}~` : `\x1b[${number}~`;
		const prefix = altKey ? "\x1b" : "";
		switch (key) {
			case "Enter":
				return `${prefix}\r`;
			case "Backspace":
				return prefix + (ctrlKey ? "\b" : "\x7f");
			case "Tab":
				return shiftKey ? "\x1b[Z" : "\t";
			case "Escape":
				return `${prefix}\x1b`;
		}
		if (key.length > 2 || (key.length === 2 && key.charCodeAt(0) < 0xd800)) return undefined;
		if (ctrlKey) {
			const code = key.toUpperCase().charCodeAt(0);
			if (key === " " || key === "2") return `${prefix}\0`;
			if (code >= 0x40 && code < 0x60) return prefix + String.fromCharCode(code - 0x40);
			return { "/": "\x1f", "-": "\x1f", "3": "\x1b", "4": "\x1c", "5": "\x1d", "6": "\x1e", "7": "\x1f", "8": "\x7f" }[key];
		}
		return prefix + key;
	}

	pasted(text) {
		const lines = text.replace(/\r?\n/g, "\r");
		// A pasted end mark must not let the rest of the text be taken for typed.
		return this.modes.paste ? `\x1b[200~${lines.replaceAll("\x1b", "")}\x1b[201~` : lines;
	}
}
Terminal.version = 1;

function hex(parts) {
	return `#${parts.map((part) => Math.min(255, part || 0).toString(16).padStart(2, "0")).join("")}`;
}

// A colour of the palette of 256, beyond the first 16, which the theme has.
function paletteColour(index) {
	if (typeof index === "string") return index;
	if (index < 16) return `var(--ansi${index})`;
	if (index >= 232) return hex([8 + (index - 232) * 10, 8 + (index - 232) * 10, 8 + (index - 232) * 10]);
	const at = index - 16;
	const level = (part) => (part ? 55 + part * 40 : 0);
	return hex([level(Math.floor(at / 36)), level(Math.floor(at / 6) % 6), level(at % 6)]);
}

// A line as an element: a span for each run of the same style.
function terminalLine(line, cursor = -1) {
	const runs = [];
	let run;
	for (const [x, [char, style]] of line.cells.entries()) {
		const here = x === cursor;
		if (!run || run.style !== style || run.cursor || here) {
			run = { style, text: "", cursor: here };
			runs.push(run);
		}
		run.text += char;
	}
	return h("div.tline", null, runs.map(({ style, text, cursor: here }) => {
		if (style === PLAIN_STYLE && !here) return text;
		let { fg, bg, flags } = style;
		if (flags & BOLD && typeof fg === "number" && fg < 8) fg += 8;
		let front = fg === null ? null : paletteColour(fg);
		let back = bg === null ? null : paletteColour(bg);
		if (flags & INVERSE) [front, back] = [back ?? "var(--tback)", front ?? "var(--tfront)"];
		const classes = [[BOLD, "b"], [DIM, "d"], [ITALIC, "i"], [UNDERLINE, "u"], [HIDDEN, "h"], [STRIKE, "k"]].filter(([flag]) => flags & flag).map(([, name]) => name);
		if (here) classes.push("cursor");
		const set = {};
		if (front) set.color = front;
		if (back) set["background-color"] = back;
		return h("span", { class: classes.join(" ") || null, style: set }, text);
	}));
}
