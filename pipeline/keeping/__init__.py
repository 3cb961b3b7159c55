"""What a store holds, who needs it, what may go, and what is handed on."""
